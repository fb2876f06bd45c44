from tests.cuda.conftest import over

__all__ = ["over"]
