"""Between the contract's messages and the domain: pure, both ways."""
