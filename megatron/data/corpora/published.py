"""The corpora GPT-NeoX knows by name. Many are no longer public: their files are fetched from where the user says."""

from megatron.data.corpora.base import DataDownloader
from megatron.registry import register


@register("corpus", "enron")
class Enron(DataDownloader):
    """Mails of the Enron company."""

    name = "enron"
    files = ("enron_emails.jsonl.zst",)
    num_docs = 517401


@register("corpus", "pile_subset")
class PileSubset(DataDownloader):
    """The first of the Pile's thirty parts."""

    name = "pile_00"
    files = ("00.jsonl.zst",)


@register("corpus", "pile")
class Pile(DataDownloader):
    """The Pile, 800 GB of text from 22 sources (arXiv:2101.00027)."""

    name = "pile"
    files = tuple(f"{part:02d}.jsonl.zst" for part in range(30))


@register("corpus", "github")
class Github(DataDownloader):
    """Source code."""

    name = "github"
    files = ("github_small.jsonl.zst",)


@register("corpus", "arxiv")
class ArXiv(DataDownloader):
    """Papers, LaTeX turned into text."""

    name = "arxiv"
    files = ("2020-09-08-arxiv-extracts-nofallback-until-2007-068.tar.gz",)


@register("corpus", "europarl")
class EuroParl(DataDownloader):
    """Proceedings of the European Parliament."""

    name = "europarl"
    files = ("EuroParliamentProceedings_1996_2011.jsonl.zst",)


@register("corpus", "freelaw")
class FreeLaw(DataDownloader):
    """Opinions of American courts."""

    name = "freelaw"
    files = ("FreeLaw_Opinions.jsonl.zst",)


@register("corpus", "nih")
class NiH(DataDownloader):
    """Abstracts of research grants."""

    name = "nih"
    files = ("NIH_ExPORTER_awarded_grant_text.jsonl.zst",)


@register("corpus", "pubmed")
class PubMed(DataDownloader):
    """Medical papers."""

    name = "pubmed"
    files = ("PMC_extracts.tar.gz",)


@register("corpus", "books1")
class Books1(DataDownloader):
    """Books."""

    name = "books1"
    files = ("books1.tar.gz",)


@register("corpus", "books3")
class Books3(DataDownloader):
    """Books."""

    name = "books3"
    files = ("books3.tar.gz",)


@register("corpus", "hackernews")
class HackerNews(DataDownloader):
    """Discussions."""

    name = "hackernews"
    files = ("hn.tar.gz",)
    num_docs = 373000


@register("corpus", "openwebtext2")
class OpenWebText2(DataDownloader):
    """Web pages that were linked to."""

    name = "openwebtext2"
    files = ("openwebtext2.jsonl.zst.tar",)
    num_docs = 17103000


@register("corpus", "stackexchange")
class StackExchange(DataDownloader):
    """Questions and answers."""

    name = "stackexchange"
    files = ("stackexchange_dataset.tar",)


@register("corpus", "ubuntu_irc")
class UbuntuIRC(DataDownloader):
    """Chat logs."""

    name = "ubuntu_irc"
    files = ("ubuntu_irc_until_2020_9_1.jsonl.zst",)


@register("corpus", "youtube_subtitles")
class YoutubeSubtitles(DataDownloader):
    """Subtitles of videos."""

    name = "youtube_subtitles"
    files = ("yt_subs.jsonl.zst",)


@register("corpus", "c4")
class C4(DataDownloader):
    """Cleaned web pages (arXiv:1910.10683)."""

    name = "c4"
    files = tuple(f"c4-train.{part:05d}-of-01024.json.gz" for part in range(1024))


@register("corpus", "c4_openwebtext")
class C4OpenWebText(DataDownloader):
    """C4 restricted to pages like those of OpenWebText."""

    name = "c4_openwebtext"
    files = tuple(f"c4-train.{part:05d}-of-00512.json.gz" for part in range(512))


@register("corpus", "enwik8")
class Enwik8(DataDownloader):
    """The first 10^8 bytes of a dump of the English Wikipedia, one document."""

    name = "enwik8"
    files = ("enwik8.zip",)
