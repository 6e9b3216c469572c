"""The tasks of a running plan: `chain` and `task` run the operators of a stage, `inputs` brings batches, watermarks and barriers
to them, `reading` (with `source_codec`) and `writing` are the ends at sources and sinks. `event_time` and `watermarks` say how far time
is, `watermark_alignment` which source waits for others. `manifest_facts` checks what checkpoints say of tasks.
"""
