"""The ground floor: errors, console, files, device door, timers. Nothing here imports torch at module level."""
