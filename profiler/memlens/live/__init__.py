"""Following a run while it is being recorded.

    tail        what is new in a rank's streams, read once
    window      attribution of the last steps, so that what it costs does not grow with the run
    follow      one rank: what it holds now, its peaks, its last step
    scalars     the same as flat numbers for loggers, in the process that trains

    beside      a process beside the job that looks on (`memlens run --live`)
    picture     what it shows, as text with colours
    screen      the lower lines of a terminal, while the job writes to the upper ones
    status      one line now and then, where there is no terminal
    look        the loop over all of that

Whatever goes wrong here, the job does not notice.
"""
