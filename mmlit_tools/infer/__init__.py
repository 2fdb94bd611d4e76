"""Run models on images, folders and videos, and write what they predict."""
