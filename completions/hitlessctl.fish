# Completion of hitlessctl and hitlessd for fish; belongs into /usr/share/fish/vendor_completions.d/.

function __hitlessctl_words
    set -l words (commandline -opc)
    for word in ($words[1] _complete $words[2..-1] (commandline -ct) 2>/dev/null)
        if test "$word" = :files
            __fish_complete_path (commandline -ct)
        else
            echo $word
        end
    end
end

complete -c hitlessctl -f -a '(__hitlessctl_words)'

complete -c hitlessd -f
complete -c hitlessd -o f -rF -d 'configuration file or directory'
complete -c hitlessd -o c -d 'check the configuration and exit'
complete -c hitlessd -o p -rF -d 'write the pid there'
complete -c hitlessd -o x -rF -d 'take the listeners over from that runtime socket'
complete -c hitlessd -o sf -x -a '(__fish_complete_pids)' -d 'tell these processes to finish'
complete -c hitlessd -o st -x -a '(__fish_complete_pids)' -d 'tell these processes to stop'
complete -c hitlessd -o D -d 'go into the background'
complete -c hitlessd -o q -d 'with -c: only warnings'
complete -c hitlessd -o v -d 'print the version'
complete -c hitlessd -o vv -d 'print the version with details'
complete -c hitlessd -s h -l help -d 'print a usage text'
