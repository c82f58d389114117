"""The Retrieval tab of the tool-use demo: a question, the tools that are found for it, and how often they suffice.

Without a trained retriever tools are found by words. With one, its catalogue is searched by words, by meaning or by
both, so that a person sees what training added.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import gradio as gr

from apps.tool_use.catalogue import load_queries
from apps.tool_use.retriever import ToolRetriever
from apps.tool_use.retriever_score import RetrievalEvaluator
from apps.tool_use.tasks import tasks
from core.errors import AppInputError, GraftError
from demos import look

SHOWN, SCORED = 8, 500
FIND = [question for question, _, _ in tasks("test")[:3]]
WAYS: dict[str, Any] = {"words": "bm25", "meaning": "dense", "both": "hybrid"}


class Finder:
    """The tab's handler.

    Args:
        retriever: a trained one; None searches by words.
    """

    def __init__(self, retriever: ToolRetriever | None = None) -> None:
        self.retriever = retriever or ToolRetriever()
        self.own = self.retriever.catalogue
        self._opened: str | None = None
        self._queries: list[Any] = []

    @property
    def ways(self) -> list[str]:
        """How this page can search, the best one last."""
        return list(WAYS) if self.retriever.model is not None else ["words"]

    def find(self, question: str, upload: str | None, way: str | None = None) -> tuple[str, str, list[list[Any]]]:
        """(banner, S@k of the catalogue's own questions, ranked tools) for a question."""
        try:
            if not question or not question.strip():
                raise AppInputError("there is no question", hint="write what you want to do")
            queries, retriever = self._catalogue(upload), self.retriever
            retriever.config = dataclasses.replace(retriever.config, search=WAYS[way or self.ways[-1]])
            gold = next((set(q.gold) for q in queries if q.query.strip() == question.strip()), set())
            rows = [
                [number, "✓" if found.id in gold else "", found.tool.name, f"{found.score:.2f}", found.tool.description]
                for number, found in enumerate(retriever(question, k=SHOWN), 1)
            ]
            return "", self._sufficiency(queries), rows
        except GraftError as error:
            return look.banner(error), "", []

    def _catalogue(self, upload: str | None) -> list[Any]:
        """The questions of the catalogue that is searched: an uploaded one, the retriever's own, or the shipped one."""
        wanted = upload or ("own" if self.own is not None else "shipped")
        if wanted != self._opened:
            if upload:
                queries = load_queries(upload, "jsonl")
            else:
                queries = load_queries(None, "embedded", split="test") if self.own is None else []
            self.retriever.index(queries[0].catalogue if queries else self.own)
            self._opened, self._queries = wanted, queries
        return self._queries

    def _sufficiency(self, queries: list[Any]) -> str:
        asked = [query for query in queries if query.gold][:SCORED]
        assert self.retriever.catalogue is not None
        tiles = {"tools": str(len(self.retriever.catalogue))}
        if asked:
            report = RetrievalEvaluator().score(self.retriever.predict(asked), asked)
            tiles["questions"] = str(len(asked))
            for name in ("sufficiency@1", "sufficiency@5", "sufficiency@10", "ndcg@5", "mrr"):
                if (value := report.metrics[name].value) is not None:
                    tiles[name.replace("sufficiency", "S").replace("ndcg", "N")] = f"{value:.1f}"
        return look.facts(tiles)

    def chips(self) -> list[str]:
        """What the header says of a trained retriever."""
        if self.retriever.model is None:
            return []
        count = sum(parameter.numel() for parameter in self.retriever.model.parameters())
        return [f"retriever: {look.place(self.retriever.source['path'])}", f"{count / 1e6:.1f}M parameters"]

    def tab(self) -> None:
        """Draw it."""
        with gr.Row():
            question = gr.Textbox(FIND[0], label="What do you want to do?", scale=3)
            upload = gr.File(
                label="Catalogue with questions (JSONL)", file_types=[".jsonl"], height=92, elem_classes="graft-file"
            )
        way = gr.Radio(self.ways, value=self.ways[-1], label="Found by", visible=len(self.ways) > 1)
        go = gr.Button("Find tools", variant="primary")
        banner = gr.HTML("", elem_classes="graft-slot", padding=False)
        nothing = "Sufficiency: the share of questions whose right tools are all among the first k."
        tiles = gr.HTML(look.empty(nothing), padding=False)
        columns = ["rank", "right", "tool", "score", "what it does"]
        rows = gr.Dataframe(headers=columns, interactive=False, wrap=True, label="Tools")
        gr.Examples([[text] for text in FIND], [question], label="Questions of the shipped catalogue")
        go.click(self.find, [question, upload, way], [banner, tiles, rows], api_name="find")
