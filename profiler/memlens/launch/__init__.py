"""Recording a job that knows nothing of memlens.

memlens run -> command.py  makes the run's folder, sets the environment, becomes the job (exec)
the job     -> inject/sitecustomize.py  Python imports it at start-up, in every child as well
            -> bootstrap.py  waits for torch to be imported, then starts a session
"""
