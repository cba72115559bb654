"""Jobs on several hosts, with the real launchers and schedulers."""
