"""The commands of the command line beside serve. Each gives lines to print."""
