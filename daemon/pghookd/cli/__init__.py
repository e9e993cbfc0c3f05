"""The command line: commands, output and exit statuses."""
