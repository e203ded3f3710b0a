"""One run on several processes, with torch's own parts: DDP, FSDP2, tensor-parallel layers and pipeline schedules."""
