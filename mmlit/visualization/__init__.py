"""Show what a network does with an image: sampling points, attention, feature maps.

Here: probing through forward hooks, drawing, and the hook that draws in training. Not
here: command lines and web pages (`mmlit_tools.visualize`).
"""
