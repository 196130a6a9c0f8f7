"""A person's own texts: files of many kinds in, LaMP's two files out, with everything that was left out counted.

    files       CSV, JSONL, JSON, plain text with separators, mbox: format and columns guessed and shown
    mailbox     messages, their charset and their text part; mail_body: without quotes, signatures, forwarded mails
    cleaning    the author, sizes, languages, duplicates
    passages    texts in passages of a few dozen words, which is what the module rewrites
    split       older texts are the history, newer ones are held out; what is in both is removed
    plain_words rules that write a neutral version of a text, where the base model cannot
    lamp_files  the examples, as a folder that `data.source` names

Nothing here asks a model or leaves the machine.
"""
