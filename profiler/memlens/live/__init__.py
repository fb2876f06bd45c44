"""Following a run while it is being recorded.

    tail        what is new in a rank's streams, read once
    window      attribution of the last steps, so that what it costs does not grow with the run
    carried     what a window keeps of the time before it
    follow      one rank: what it holds now, its peaks, its last step
    scalars     the same as flat numbers for loggers, in the process that trains

Whatever goes wrong here, the job does not notice.
"""
