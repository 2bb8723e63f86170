"""What a quote rests on: prices, tokens, speed and the sliding window. Pure: no I/O, no clock, chance by seed."""
