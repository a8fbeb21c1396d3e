"""Plain values, no I/O: states, records, durations, the clock, codecs and contracts."""
