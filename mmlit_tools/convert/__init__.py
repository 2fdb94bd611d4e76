"""Convert checkpoint files between the authors' layouts and mmlit's."""
