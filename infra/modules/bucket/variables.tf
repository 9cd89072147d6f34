variable "name" {
  type = string
}

variable "location" {
  type = string
}

variable "result_ttl" {
  description = "RESULT_TTL of the application, in seconds: whole days, since that is how a bucket counts."
  type        = number

  validation {
    condition     = var.result_ttl >= 86400 && var.result_ttl % 86400 == 0
    error_message = "result_ttl must be whole days, in seconds."
  }
}

variable "origins" {
  description = "The page's addresses, which may upload and show pictures."
  type        = list(string)

  validation {
    condition     = alltrue([for origin in var.origins : can(regex("^https://[^*/]+$", origin))])
    error_message = "Each origin is https://name, without a star and without a path."
  }
}

variable "members" {
  description = "Who may do what with the objects."
  type = map(object({
    role   = string
    member = string
  }))

  validation {
    condition     = alltrue([for m in values(var.members) : !contains(["allUsers", "allAuthenticatedUsers"], m.member)])
    error_message = "The bucket is nobody's but the roles'."
  }
}

variable "force_destroy" {
  type    = bool
  default = false
}
