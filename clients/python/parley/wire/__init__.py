"""Both ends of the wire: what every Parley server and client shares. gRPC only; it knows no batch."""
