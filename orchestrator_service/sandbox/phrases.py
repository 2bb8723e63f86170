"""The stock of words that sandbox conversations are put together from."""

from itertools import product

Pool = tuple[str, ...]


def _crossed(firsts: str, seconds: str) -> Pool:
    """Every first with every second: a few lines of words give hundreds of phrases."""
    return tuple(f"{first} {second}" for first, second in product(firsts.split("|"), seconds.split("|")))


WHEN = _crossed(
    "On Monday|Last Tuesday|On Wednesday|Last Thursday|On Friday|Last Saturday|On Sunday|Last Monday|On Tuesday",
    "morning|afternoon|evening|night",
)
DID = _crossed(
    "I opened|I put away|I went back to|I talked through|I avoided|I rewrote|I finally read"
    "|I printed|I stared at"
    "|I argued about|I half finished|I asked about|I hid|I sorted|I explained|I skimmed|I tore up|I saved",
    "the letter|the spreadsheet|that form|the whole list|my notes|the old photos|the shared calendar"
    "|the last statement|the plan we made|the unopened mail|that long email|the budget|the draft"
    "|the folder on my desk|the first page|the receipt|the message from work",
)
AND_SO = _crossed(
    "and then|and afterwards|and for an hour|and before dinner|and all the same|and somehow|but still"
    "|but by the end|so naturally|and to my surprise|and within minutes|yet oddly",
    "I felt lighter|I could not sleep|I laughed out loud|I had to sit down|nothing had changed"
    "|I wanted to call someone|I lost the thread|my shoulders dropped|I kept checking the clock"
    "|I said yes too quickly|I started over|the room went quiet|I was fine with it|I could not say why"
    "|I made tea and waited|I forgot to eat",
)
WORRY = _crossed(
    "What worries me is|I keep coming back to|The hard part is|I did not expect|Nobody warned me about"
    "|I am tired of|Part of me misses|My mind goes straight to|I would trade anything to skip",
    "the silence afterwards|how small it looks on paper|what my sister will think|the cost of waiting"
    "|being the one who decides|the look on his face|how often I apologise|the paperwork nobody reads"
    "|the way they say maybe|having to explain it twice|the empty chair in the kitchen|the sound of the phone"
    "|how quickly a month goes by|the part where I pretend|being asked for a number",
)
WONDER = _crossed(
    "Is it odd that|Would it be a problem if|Does it matter that|What happens if|Do people often say that"
    "|Should I tell them that|How bad is it that|Will it show that",
    "I am the only one who minds|I change my mind later|I need more time than the others|I started too late"
    "|I say it badly|I am asking for too much|I would rather do it alone|I stop halfway|the timing is wrong"
    "|it costs more than I said|my family disagrees|I enjoy this|I have no answer yet|the first try failed",
)
FEEL = (
    "If I had to name it today, I would say",
    "The word that fits is still",
    "Right now it comes closest to",
    "Underneath, it is mostly",
    "I would simply call it",
    "Put plainly, this is",
    "Ask me this minute and I will answer",
    "My honest one-word report is",
    "In my chest it registers as",
    "My journal from last night just says",
    "When I picture telling a friend, I hear myself say",
    "The old label was wrong, and the new one is",
)
NUMBERS = "3|4|6|9|11|12|14|17|19|22|26|28|31|35|40|44|52|60|75|90|110|130|180|240|365"
COUNT = _crossed(NUMBERS, "minutes|dollars|pages|steps|lines in my notes|small decisions|unread messages|attempts")
SPELL = _crossed(NUMBERS, "minutes|quiet minutes|hours|breaths|days|seconds|lines|words")
SO_MUCH = (
    "more than I had guessed",
    "less than last time",
    "the most so far",
    "hardly anything by now",
    "a start at least",
    "double what the others needed",
    "fair for one evening",
    "give or take",
    "not counting the phone",
)
NO_MORE = (
    "no more",
    "more or less",
    "if you can spare it",
    "counted loosely",
    "and call it done",
    "then look up",
    "spread over a week",
    "to begin with",
)
AROUND = (
    "at the kitchen table",
    "in the parked car",
    "with the radio on",
    "while the kettle boiled",
    "before anyone was up",
    "between two shifts",
    "on the stairs",
    "without my glasses",
    "for the third time",
    "with my coat still on",
    "during the lunch break",
    "after the neighbours left",
    "instead of sleeping",
)
HEAR = _crossed(
    "It makes sense that|I can hear that|Thank you for telling me that|It says a lot that"
    "|It is no small thing that"
    "|I will remember that|I am glad that|It matters that|I notice that",
    "you looked at it again|you did not turn away|this has been sitting with you"
    "|you chose your own words for it"
    "|you asked before deciding|you kept a record|it still costs you something|you told someone"
    "|the week went differently|you want it to be fair|you slept on it|you let it be unfinished"
    "|you can describe it so exactly|you came back to the question",
)
SUGGEST = _crossed(
    "You could|It may help to|A gentle start is to|For now, try to|One option is to|The lightest move is to"
    "|If it feels right,|Before the weekend,|As an experiment,",
    "write down one sentence|set a timer for ten minutes|pick the smallest piece|say the number out loud"
    "|leave the rest for later|ask one person you trust|draw two columns|list what is already done"
    "|keep the old version beside the new|mark the part that stings|read it as a friend would"
    "|choose a day and keep it|cross out whatever is not yours|put the deadline in plain sight",
)
HOW = (
    "before the next call",
    "while the kettle boils",
    "on paper rather than on a screen",
    "without fixing anything",
    "and notice what your body does",
    "and then stop",
    "and bring it next time",
    "once, and only once",
    "with the door closed",
    "even if it looks clumsy",
    "at the same hour as yesterday",
    "and leave the total blank",
    "as if nobody would ever check",
    "right after breakfast",
    "and date it",
    "in your own order",
    "with a pen you like",
)
REASON = _crossed(
    "That way|Often|The point is that|Most of the time|Done like this,|From there|In practice|With a little luck",
    "the next step shows itself|the pressure has somewhere to go|you keep the decision in your hands"
    "|the facts and the fear come apart|nobody has to guess|small progress stays visible"
    "|a bad day cannot undo it|the numbers stop shouting|the conversation gets shorter"
    "|you find out what is missing"
    "|the real question comes up by itself|there is room for a second opinion",
)
ASK = _crossed(
    "What would change if|Who would notice first if|How would it feel if|What is the first sign that"
    "|Where would you be sitting if|What could you put down if|Which part gets easier if",
    "this took half the time|you trusted the first answer|the deadline moved"
    "|somebody said thank you|it went well"
    "|you stopped explaining|the plan fitted on one page|you were allowed to be slow|they simply agreed"
    "|you heard the same story from a friend|tomorrow were an ordinary day",
)
GREETING = (
    "I wanted to talk about",
    "Could we start with",
    "Today I would like to bring up",
    "I keep meaning to ask about",
    "Something came up around",
    "I am not sure where to begin with",
    "I have been putting off a talk about",
    "Can we spend this time on",
    "My question is about",
    "I need a second pair of eyes on",
)
WELCOME = (
    "thank you for bringing this here",
    "I am glad you said it out loud",
    "let us take this one piece at a time",
    "there is no rush with this",
    "that is a good place to begin",
    "we can go as slowly as you like",
    "I have read this twice to be sure I follow",
    "nothing about this is silly",
)
SHIFT = (
    "You sound a step away from {stage} already.",
    "If this is {stage}, it can be worked with.",
    "There is more than {stage} in what you describe.",
    "Let {stage} be in the room for a minute without an argument.",
    "I would not hurry past {stage}.",
    "Many people meet {stage} at exactly this point.",
    "Whatever comes next, {stage} has told you something.",
    "So {stage} is where we are, and that is useful to know.",
)
CLOSING = _crossed(
    "You came in with {first} and leave nearer to {last},|From {first} to {last} is a long way for one talk,"
    "|If {first} comes back tonight, remember how {last} felt,|Keep a note of this {last},"
    "|That is enough {first} for today,|Next time we can see whether {last} held,"
    "|Where {first} was, {last} has a place,",
    "and you did the walking.|so let the day be easy.|and call it work well done.|for it will be handy."
    "|and rest on it.|with or without a plan.|and thank you for staying."
    "|as slowly as it needs.|and eat something warm.",
)
# What may stand at the end of a sentence, so that the same thought seldom comes in the same words.
OF_HEARING = (
    "even on a day like this",
    "after all those months",
    "with so little sleep",
    "in the middle of everything",
    "with everyone watching",
    "long before it was easy",
    "in spite of the noise",
    "without being asked",
    "though it was late",
    "and so plainly",
    "between two appointments",
    "on top of the rest",
)
OF_REASON = (
    "by the end of the week",
    "sooner than planned",
    "a little at a time",
    "on most days",
    "after a night of sleep",
    "without a speech",
    "at its own speed",
    "even in a busy month",
    "one evening at a time",
    "before the next bill",
    "with less noise",
    "and stays that way",
)
OF_ASKING = (
    "for once",
    "this month",
    "at home first",
    "just this week",
    "starting now",
    "with nobody watching",
    "before Friday",
    "in plain daylight",
    "a year from today",
    "without a reason",
    "on your birthday",
)
OF_WORRY = (
    "more than the money",
    "especially at night",
    "if I am honest",
    "on the way home",
    "at the worst moments",
    "even in the shower",
    "since the spring",
    "whatever I tell people",
    "more often than I admit",
    "and nothing else",
    "twice a day",
)
OF_WONDER = (
    "at this point",
    "after all this",
    "in the end",
    "of all weeks",
    "with winter coming",
    "when nobody asks",
    "before the holidays",
    "at my age",
    "in front of him",
    "yet again",
    "this late in the year",
)
