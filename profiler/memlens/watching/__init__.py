"""Looking on while a job runs: `memlens run --live`, `memlens watch`.

    beside      a process beside the job; the job itself stays what it would be without it
    look        its loop: follow the ranks, show them, and take no more time than is due
    ranks       the ranks of the run, each followed by `memlens.live.follow`
    picture     what is shown, as lines with colours
    screen      the lower lines of a terminal, while the job writes to the upper ones
    status      one line now and then, where there is no terminal

Nothing of it runs in the job.
"""
