"""Measure the cost of LIT and its peers: time, memory, operations."""

from mmlit_tools.benchmark.command import main

if __name__ == '__main__':
    main()
