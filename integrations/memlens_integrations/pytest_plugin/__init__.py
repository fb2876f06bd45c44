"""A pytest plugin that holds tests to memory budgets; pytest finds it by its entry point.

`hooks` is what pytest calls. It is loaded in every run of pytest where memlens is installed, so it
imports neither torch nor anything of memlens until a test asks for it.

    @pytest.mark.memory_budget(peak="1.2GB", optimizer_state="400MB", baseline=True)
    def test_step():
        ...
"""
