"""Programs that exist for the speed of one platform; `nn` holds the layers that papers describe."""
