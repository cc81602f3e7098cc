"""What a machine is: its devices, its memory and the storage a model lies on."""
