"""What Parley means by a batch: pure, stdlib only, no I/O and no clock."""
