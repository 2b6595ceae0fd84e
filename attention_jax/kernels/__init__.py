"""Programs that exist for the speed of one platform; the layers that papers describe are in `nn`."""
