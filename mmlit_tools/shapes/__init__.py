"""Draw the small dataset of the demos: images, boxes, masks."""
