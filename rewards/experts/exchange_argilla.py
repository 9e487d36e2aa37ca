"""Ratings as Argilla's records, as `rg.Dataset.records.to_json` writes them.

Its ratings are whole numbers, here of tenths, and one rater answers once: what that loses stands in the metadata, and counts
where it agrees with the answer.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rewards.experts.exchange_json import Row, listed, need, object_in, objects_in, parse, to_json
from rewards.experts.exchange_rows import RATING_KEYS, SCORES, Rated, blank_rating, read, rows_of, score_of


def dump(rated: Rated) -> bytes:
    """The file: a record for every item, rated or not."""
    return to_json([_record(item, ratings) for item, ratings in rated]).encode()


def _record(item: Row, ratings: Sequence[Row]) -> Row:
    chat = [{"role": turn["speaker"], "content": turn["text"]} for turn in item["history"]]
    responses: dict[str, list[Row]] = {}
    for user, rating in _answers(ratings).items():
        for question, value in _answer(rating).items():
            responses.setdefault(question, []).append({"value": value, "user_id": user})
    told = {name: item[name] for name in ("key", "tier", "wanted", "priority")}
    metadata = {**told, "origin": to_json(item["origin"]), "ratings": to_json(list(ratings))}
    fields = {"history": chat, "reply": item["reply"]}
    return {
        "id": item["id"], "fields": fields, "metadata": metadata, "suggestions": {}, "responses": responses, "vectors": {},
        "_server_id": None,
    }  # fmt: skip


def _answers(ratings: Iterable[Row]) -> dict[str, Row]:
    """The rating that is a rater's answer: not a repeated one, where there is another."""
    answers: dict[str, Row] = {}
    for rating in sorted(ratings, key=lambda rating: rating["repeat"]):
        answers.setdefault(str(uuid.uuid5(uuid.NAMESPACE_OID, rating["rater"])), rating)
    return answers


def _answer(rating: Row) -> Row:
    scores = {name: round(10 * score_of(rating, name)) for name in SCORES}
    return {**scores, "flags": rating["flags"], **({"reason": rating["reason"]} if rating["reason"] else {})}


def load(text: str, file: str) -> Iterator[tuple[str, Row]]:
    """Place and row of each rating, and of each record without one. Raises ValueError for what is no record."""
    for where, record in listed(text, file, "record"):
        fields, metadata = (object_in(record, name, where) for name in ("fields", "metadata"))
        responses = object_in({"responses": {}, **record}, "responses", where)
        chat = objects_in(fields, "history", where)
        history = [{"speaker": turn.get("role"), "text": turn.get("content")} for turn in chat]
        origin = parse(str(metadata.get("origin", "{}")), f"{where}, origin")
        item = {"id": record.get("id"), **metadata, "history": history, "reply": fields.get("reply"), "origin": origin}
        ratings = parse(str(metadata.get("ratings", "[]")), f"{where}, ratings")
        need(isinstance(ratings, list), where, "ratings", "a list", ratings)
        for number, rating in enumerate(ratings, start=1):
            complete = isinstance(rating, dict) and set(rating) == set(RATING_KEYS)
            need(complete, where, f"rating {number}", f"an object of {', '.join(RATING_KEYS)}", rating)
            read({**item, **rating}, f"{where}, rating {number}")
        yield from rows_of(where, item, _overlaid(ratings, _by_user(responses, where), item["id"]))


def _by_user(responses: Row, where: str) -> dict[str, Row]:
    users: dict[str, Row] = {}
    for question, given in responses.items():
        need(isinstance(given, list), where, f"responses to {question!r}", "a list", given)
        for response in given:
            fits = isinstance(response, dict) and isinstance(response.get("user_id"), str) and "value" in response
            need(fits, where, f"a response to {question!r}", "an object with value and user_id", response)
            users.setdefault(response["user_id"], {})[question] = response["value"]
    return users


def _overlaid(ratings: Sequence[Row], users: Mapping[str, Row], item: str) -> list[Row]:
    """The exact ratings, save those that were answered otherwise since, and new ones."""
    exact = _answers(ratings)
    changed = {
        user: {**blank_rating(f"argilla-{item}-{user}", f"argilla-{user}"), **exact.get(user, {}), **_in_tenths(given)}
        for user, given in users.items()
        if user not in exact or _answer(exact[user]) != given
    }
    kept = [changed.pop(next((u for u, r in exact.items() if r is rating), ""), rating) for rating in ratings]
    return [*kept, *changed.values()]


def _in_tenths(given: Row) -> Row:
    tenths = {name: given[name] / 10 if isinstance(given.get(name), int | float) else None for name in SCORES}
    score = tenths.pop("score")
    return {"criteria": tenths, "score": score, "flags": given.get("flags", []), "reason": given.get("reason", "")}
