"""One module for each file format; each turns a file into a ReplayBuffer."""
