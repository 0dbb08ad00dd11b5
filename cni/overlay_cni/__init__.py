"""The CNI plugin's package: it stands alone and imports neither ``overlay`` nor a library."""
