"""Measure time, memory and operations of backbones, detectors and segmentors."""
