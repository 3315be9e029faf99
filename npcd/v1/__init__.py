"""Generated from proto/npcd/v1 by `make proto`. Do not edit."""
