"""Attribution joins events with tags and marks, after the fact.

    lifetimes   events  -> one row per block: from which event to which
    segments    marks   -> what the job was doing at any time
    rules       all     -> one category per block

Pure functions from arrays to arrays: run again with better rules, an old capture gets better answers.
"""
