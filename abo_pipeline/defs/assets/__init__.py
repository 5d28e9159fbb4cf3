"""The assets, one file a stage; each reads like its row in the README."""
