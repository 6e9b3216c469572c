from sabot.journal.base import Inbox as Inbox
from sabot.journal.base import Journal as Journal
from sabot.journal.base import JournalReader as JournalReader
from sabot.journal.base import Position as Position
from sabot.journal.entries import Letter as Letter
from sabot.journal.opening import open_inbox as open_inbox
from sabot.journal.opening import open_journal as open_journal
from sabot.journal.opening import open_reader as open_reader
