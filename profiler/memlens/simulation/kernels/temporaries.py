def temporaries(func, args, kwargs, outputs):
    return ()
