"""Lightning tasks, optimisation and the recording of runs."""
