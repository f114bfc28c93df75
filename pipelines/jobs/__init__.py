"""What a command runs, from its sources to what it leaves."""
