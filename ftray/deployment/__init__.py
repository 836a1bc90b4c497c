"""`ftray up` and `ftray down`: a cluster and the service on this machine, beyond one command."""
