"""What a pair is: two Pyro programs, their traces, plates, particles, networks and arguments."""
