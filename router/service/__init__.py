"""The router as a microservice: decisions, recommendations and feedback over HTTP.

Everything a request needs comes from one published release (:mod:`router.releases`), opened once and
memory-mapped, so that workers share it, and from one store that all workers write to
(:mod:`router.service.store`). FastAPI is imported here and nowhere else; PyTorch is not.
"""
