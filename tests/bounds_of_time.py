"""How long a test waits before it calls something endless."""

from __future__ import annotations

# In seconds, of CPU time where no one else is waited for. Not a measure of speed: a slow machine under
# coverage takes ten times what a quiet one does, and what grows with the square of a hostile input takes hours.
NO_END = 60.0
