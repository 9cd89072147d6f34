// Runs a declarative Jenkinsfile against a recorder that knows which word may stand where, and prints what was recorded:
// a list of {path, word, arguments} as JSON. A word in a wrong place, or one that Jenkins does not have, is an error.
import groovy.json.JsonOutput
import org.codehaus.groovy.control.CompilerConfiguration

abstract class Recorder extends Script {
    static final List recorded = []
    static final List path = []
    static final Map ALLOWED = [
        file       : ['pipeline'],
        pipeline   : ['agent', 'options', 'environment', 'parameters', 'triggers', 'stages', 'post'],
        stages     : ['stage'],
        parallel   : ['stage'],
        stage      : ['agent', 'environment', 'options', 'when', 'steps', 'stages', 'parallel', 'post'],
        when       : ['branch', 'expression', 'tag', 'not', 'allOf', 'anyOf'],
        post       : ['always', 'success', 'failure', 'unstable', 'aborted', 'cleanup'],
        options    : ['timeout', 'disableConcurrentBuilds', 'buildDiscarder', 'timestamps', 'skipDefaultCheckout', 'logRotator'],
        agent      : ['label'],
        environment: [],
        steps      : ['sh', 'echo', 'junit', 'archiveArtifacts', 'withCredentials', 'retry', 'timeout', 'dir', 'stash', 'unstash',
                      'usernamePassword', 'file', 'string', 'sshUserPrivateKey', 'cleanWs'],
    ]

    // What stands inside a block follows the block's own rules; conditions of post, and steps that wrap steps, hold steps.
    static String rules() { path ? path[-1].rules : 'file' }
    static String rulesInside(String word) {
        if (ALLOWED.containsKey(word) && word != 'steps') return word
        if (word in ['not', 'allOf', 'anyOf']) return 'when'
        return 'steps'
    }

    Object invokeMethod(String word, Object given) {
        def arguments = given as List
        if (!(word in ALLOWED[rules()])) throw new IllegalStateException("'$word' may not stand in ${path*.word.join('/') ?: 'the file'}")
        def block = arguments && arguments[-1] instanceof Closure ? arguments[-1] : null
        recorded << [path: path.collect { it.name ?: it.word }, word: word, arguments: (block ? arguments[0..<-1] : arguments)*.toString()]
        if (block) {
            path << [word: word, rules: rulesInside(word), name: word == 'stage' ? arguments[0] : null]
            block.delegate = this
            block.resolveStrategy = Closure.OWNER_FIRST
            block.call()
            path.pop()
        }
        return arguments ? "$word(${arguments.join(', ')})".toString() : word
    }

    // `REGISTRY = '…'` in environment.
    void setProperty(String name, Object value) {
        if (rules() != 'environment') throw new IllegalStateException("'$name = …' may not stand in ${path*.word.join('/')}")
        recorded << [path: path*.word, word: name, arguments: [value.toString()]]
    }

    Object getProperty(String name) {
        if (name in ['any', 'none']) return name
        if (name == 'env') return System.getenv()
        throw new IllegalStateException("nobody knows '$name' in ${path*.word.join('/')}")
    }
}

def shell = new GroovyShell(Recorder.classLoader, new Binding(), new CompilerConfiguration(scriptBaseClass: Recorder.name))
try {
    shell.evaluate(new File(args[0]))
} catch (Throwable error) {
    System.err.println("Jenkinsfile: ${error.message}")
    System.exit(1)
}
println JsonOutput.toJson(Recorder.recorded)
