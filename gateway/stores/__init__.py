"""Where exchanges and all that is learned from them are kept."""
