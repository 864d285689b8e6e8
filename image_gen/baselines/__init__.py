"""What drifting generators are compared with: flow matching with the same network, and a classifier as judge."""
