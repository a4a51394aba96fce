//! The closed vocabulary of the embedded posts. All ASCII; every word of a slot belongs to that slot alone.

/// People.
pub(super) const NAMES: &[&str] = &[
    "Ana", "Ben", "Cara", "Dan", "Eva", "Finn", "Gina", "Hugo", "Ida", "Jack", "Kate", "Leo",
    "Mia", "Nina", "Omar", "Paul", "Rosa", "Sam", "Tina", "Umar", "Vera", "Wade", "Yara", "Zoe",
];

/// What was done: verbs whose past tense and past participle are one word, so that active and passive share it.
pub(super) const VERBS: &[&str] = &[
    "lost", "found", "bought", "sold", "painted", "cleaned", "fixed", "moved", "dropped", "opened",
    "borrowed", "returned", "burned", "packed", "carried", "washed", "locked", "brought", "traded",
    "left",
];

/// Qualities of the object.
pub(super) const KINDS: &[&str] = &[
    "red", "blue", "green", "yellow", "black", "white", "old", "new", "small", "big", "heavy",
    "broken", "wooden", "silver", "cheap", "plain",
];

/// Objects.
pub(super) const THINGS: &[&str] = &[
    "key", "bag", "lamp", "chair", "book", "box", "cup", "clock", "coat", "phone", "radio", "map",
    "ring", "drum", "bike", "kite", "table", "boat", "basket", "letter", "camera", "knife",
    "bottle", "ladder",
];

/// Places, each with its preposition; the last words differ.
pub(super) const PLACES: &[&str] = &[
    "at the station",
    "in the park",
    "at the market",
    "in the library",
    "at the school",
    "on the bridge",
    "in the garden",
    "at the harbor",
    "in the kitchen",
    "at the museum",
    "in the office",
    "at the bakery",
    "on the train",
    "in the hotel",
    "at the farm",
    "in the cellar",
    "at the airport",
    "in the forest",
    "on the beach",
    "at the theater",
];

/// Times; the last words differ.
pub(super) const TIMES: &[&str] = &[
    "on Monday",
    "on Tuesday",
    "on Wednesday",
    "on Thursday",
    "on Friday",
    "on Saturday",
    "on Sunday",
    "last night",
    "this morning",
    "at noon",
    "last week",
    "after lunch",
];

/// Sentences that hold the point of a post.
pub(super) const POINTS: &[&str] = &[
    "{who} {did} the {kind} {what} {where} {when}.",
    "{when} {who} {did} the {kind} {what} {where}.",
    "{when}, {where}, {who} {did} the {kind} {what}.",
    "my friend {who} {did} the {kind} {what} {where} {when}.",
    "{when} the {kind} {what} was {did} by {who} {where}.",
];

/// Sentences with facts beside the point. None contains one of [`VERBS`]: that identifies the point.
pub(super) const ASIDES: &[&str] = &[
    "{who} was {where} {when}.",
    "{who} likes the {kind} {what}.",
    "it rained {where} {when}.",
    "it was quiet {where} {when}.",
    "the {kind} {what} {where} is not mine.",
    "{who} called me {when}.",
    "{who} works {where}.",
    "{who} and I met {where} {when}.",
];

/// Sentences without facts.
pub(super) const FILLERS: &[&str] = &[
    "hello all.",
    "this is a long story.",
    "I hope you are well.",
    "please read to the end.",
    "thanks for your help.",
    "this is my first post.",
    "sorry for my bad English.",
    "what would you do?",
    "any ideas are welcome.",
    "I do not know what to think.",
    "we still laugh about it.",
    "my family is not happy.",
];

/// Summaries that say little.
pub(super) const VAGUE: &[&str] = &[
    "{who} {did} something.",
    "something happened {where}.",
    "a short story about {who}.",
    "{who} needs some help.",
    "someone {did} a {what}.",
];

/// What chatty summaries add before the full stop.
pub(super) const TAILS: &[&str] = &[
    ", I think",
    ", or so I heard",
    " and we talked about it for hours",
    " and it was a very long day for all of us",
];
