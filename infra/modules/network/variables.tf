variable "name" {
  description = "Name of the network; its parts are named after it."
  type        = string
}

variable "region" {
  type = string
}

variable "ranges" {
  description = "Private ranges; none overlaps another."
  type = object({
    nodes    = optional(string, "10.10.0.0/20")
    workers  = optional(string, "10.10.16.0/22")
    pods     = optional(string, "10.12.0.0/16")
    services = optional(string, "10.16.0.0/20")
    managed  = optional(string, "10.20.0.0/16")
  })
  default = {}

  validation {
    condition     = alltrue([for range in values(var.ranges) : can(cidrhost(range, 0))])
    error_message = "Each range must be written like 10.10.0.0/20."
  }
}

variable "ssh_ranges" {
  description = "Private networks with a route here, whence the workers are reached over SSH besides Identity-Aware Proxy."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for range in var.ssh_ranges : tonumber(split("/", range)[1]) >= 24])
    error_message = "SSH is open to networks of at most 256 addresses (/24), never to the world."
  }
}

variable "metrics_ports" {
  description = "Ports of a worker machine that Prometheus scrapes: worker, node-exporter, DCGM."
  type        = list(number)
  default     = [9464, 9100, 9400]
}

variable "health_port" {
  description = "Port of a worker machine where Google's health checks ask."
  type        = number
}
