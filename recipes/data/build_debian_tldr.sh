#!/usr/bin/env bash
# Builds pairs of a Debian package's description and its one-line synopsis from apt's lists.
#
#   build_debian_tldr.sh FOLDER          from apt's lists as they are (run `apt-get update` first)
#   build_debian_tldr.sh FOLDER LISTS    from the lists in the folder LISTS
#
# Writes FOLDER/debian_tldr.{train,valid,test}.jsonl.gz with the columns prompt (the description), completion (the synopsis)
# and source (the source package, by which the files are split). One pair for each source package. Needs bash, awk, sort, gzip and apt's apt-helper, which unpacks lists however they are packed.
#
# Images of containers often switch descriptions off (Acquire::Languages "none"). Then fetch them apart, without root:
#   mkdir -p lists/partial
#   apt-get update -o Acquire::Languages=en -o Dir::State::lists="$PWD/lists"
#   recipes/data/build_debian_tldr.sh FOLDER lists
set -euo pipefail
export LC_ALL=C

if (($# < 1 || $# > 2)); then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
out=$1
if (($# == 2)); then
    lists=$2
else
    eval "$(apt-config shell lists Dir::State::lists/d)"
    lists=${lists:-/var/lib/apt/lists}
fi
helper=/usr/lib/apt/apt-helper
[[ -x $helper ]] || { echo "build_debian_tldr: $helper is missing; this script needs Debian, Ubuntu or a relative" >&2; exit 1; }

shopt -s nullglob
packages=("$lists"/*_Packages "$lists"/*_Packages.*)
descriptions=("$lists"/*_i18n_Translation-en "$lists"/*_i18n_Translation-en.*)
if ((${#packages[@]} == 0)); then
    echo "build_debian_tldr: no package lists in $lists; run apt-get update" >&2
    exit 1
fi
if ((${#descriptions[@]} == 0)); then
    echo "build_debian_tldr: no English descriptions in $lists; see the head of this script for how to fetch them" >&2
    exit 1
fi

mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Of each binary package: its name, section and source package.
"$helper" cat-file "${packages[@]}" | awk '
    function flush() {
        if (name != "") print name "\t" section "\t" (source != "" ? source : name)
        name = section = source = ""
    }
    /^Package: / { flush(); name = $2 }
    /^Section: / { section = $2 }
    /^Source: /  { source = $2 }
    END { flush() }
' >"$work/packages"

# One line for each package that is kept: source, length of the name, name, prompt, completion; the texts as JSON strings.
"$helper" cat-file "${descriptions[@]}" | awk -v packages="$work/packages" '
    BEGIN {
        FS = "\t"
        while ((getline <packages) > 0) {
            section[$1] = $2
            source[$1] = $3
        }
        for (code = 1; code < 32; code++) {
            control[sprintf("%c", code)] = sprintf("\\u%04x", code)
        }
    }

    /^Package: / { flush(); name = substr($0, 10); next }
    /^Description-en: / { synopsis = substr($0, 17); reading = 1; next }
    /^[ \t]/ { if (reading) line(substr($0, 2)); next }
    { reading = 0 }
    END { flush() }

    function trimmed(text) {
        gsub(/^[ \t]+|[ \t]+$/, "", text)
        return text
    }

    # Paragraphs are joined to one line each; list items and lines set apart by a blank stay lines of their own.
    function line(text,    item, apart) {
        if (trimmed(text) == ".") { end_paragraph(); return }
        if (trimmed(text) == "") return
        item = text ~ /^[ \t]*([-*+o]|\342\200\242)[ \t]/
        apart = text ~ /^[ \t]/
        text = trimmed(text)
        if (item) { start_line(text); in_item = 1 }
        else if (apart && in_item) open = open " " text
        else if (apart) { start_line(text); verbatim = 1 }
        else if (in_item || verbatim || open == "") { start_line(text) }
        else open = open " " text
    }
    function start_line(text) {
        end_line()
        open = text
    }
    function end_line() {
        if (open != "") paragraph = paragraph (paragraph == "" ? "" : "\n") open
        open = ""
        in_item = verbatim = 0
    }
    function end_paragraph() {
        end_line()
        if (paragraph != "") body = body (body == "" ? "" : "\n\n") paragraph
        paragraph = ""
    }

    function flush() {
        end_paragraph()
        if (name != "" && !(name in seen)) {
            seen[name] = 1
            if (good()) {
                print source[name] "\t" length(name) "\t" name "\t" json(body) "\t" json(synopsis)
            }
        }
        name = synopsis = body = ""
        reading = 0
    }

    # Lowercase words alone: what two texts that differ in layout have in common.
    function bare(text) {
        text = tolower(text)
        gsub(/[^a-z0-9\200-\377]+/, " ", text)
        return trimmed(text)
    }

    function good(    text, plain, others) {
        if (!(name in source)) return 0
        if (section[name] ~ /oldlibs$/ || section[name] == "debug" || name ~ /-dbg(sym)?$/) return 0
        if (synopsis !~ /[^ \t][ \t]+[^ \t]/ || length(synopsis) < 8 || length(synopsis) > 120) return 0
        if (length(body) < 60 || length(body) > 4000) return 0
        text = tolower(synopsis)
        if (text ~ /transitional|dummy|debug(ging)? symbols|detached debug|obsolete package|empty package|meta-?package|virtual package/) return 0
        text = tolower(body)
        if (text ~ /transitional (dummy )?package|dummy (transitional )?package|debug symbols|can be safely removed/) return 0
        # Says which crate it packs and nothing else.
        if (body ~ /^This metapackage enables feature/) return 0
        if (length(body) < 300 && body ~ /^This package contains the (source|following binaries built from) (for )?the Rust [^.]* crate[^.]*\.?$/) return 0
        # Not English: above a tenth of the characters outside ASCII, each counted by its first byte.
        plain = body
        others = gsub(/[\300-\377]/, "", plain)
        if (others > 0.1 * length(body)) return 0
        text = bare(body)
        if (text in bodies) return 0
        bodies[text] = 1
        return 1
    }

    function json(text,    code) {
        text = replaced(text, "\\", "\\\\")
        text = replaced(text, "\"", "\\\"")
        text = replaced(text, "\n", "\\n")
        text = replaced(text, "\t", "\\t")
        if (text ~ /[\001-\037]/) {
            for (code in control) text = replaced(text, code, control[code])
        }
        return "\"" text "\""
    }
    # By hand, because awks differ in what a backslash means in the replacement of gsub.
    function replaced(text, from, to,    at, done) {
        while (at = index(text, from)) {
            done = done substr(text, 1, at - 1) to
            text = substr(text, at + length(from))
        }
        return done text
    }
' >"$work/pairs"

# Of each source package the binary package with the shortest name (the first of its kind in the alphabet), and of
# packages with the same synopsis the first.
sort -t $'\t' -k1,1 -k2,2n -k3,3 "$work/pairs" | awk '
    BEGIN { FS = "\t" }
    $1 == last { next }
    {
        last = $1
        key = tolower($5)
        gsub(/[^a-z0-9\200-\377]+/, " ", key)
        if (key in seen) next
        seen[key] = 1
        print
    }
' >"$work/chosen"

# Of twenty source packages about one is in valid and one in test, by a checksum of its name: the same ones on every machine.
awk -v train="$work/train" -v valid="$work/valid" -v test="$work/test" '
    BEGIN {
        FS = "\t"
        for (code = 1; code < 128; code++) number[sprintf("%c", code)] = code
    }
    {
        sum = 0
        for (at = 1; at <= length($1); at++) sum = (sum * 257 + number[substr($1, at, 1)]) % 1000003
        row = "{\"prompt\": " $4 ", \"completion\": " $5 ", \"source\": \"" $1 "\"}"
        print row >(sum % 20 == 0 ? valid : sum % 20 == 1 ? test : train)
    }
' "$work/chosen"
for part in train valid test; do
    gzip -9 -n -c "$work/$part" >"$work/$part.gz"
    mv "$work/$part.gz" "$out/debian_tldr.$part.jsonl.gz"
    echo "$(wc -l <"$work/$part") pairs in $out/debian_tldr.$part.jsonl.gz"
done
