"""The command line and the jobs that wire fetal_core to Ray Data, Train, Tune and Serve."""
