"""What the command line does beside serving. Each gives lines to print."""
