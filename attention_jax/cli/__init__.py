"""The command line: train | evaluate | translate | table | plot | summary | preflight | prepare."""
